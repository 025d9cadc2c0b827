"""Everything that cannot be served is refused in the launcher: one sentence, exit code 2."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglang_speckv import Engine
from sglang_speckv.config import ConfigError
from sglang_speckv.srt import arguments, compat
from sglang_speckv.srt.engine import prepare, with_speckv
from sglang_speckv.srt.serve import diagnose
from tests.engine.conftest import flags
from tests.engine.tiny_models import tiny_llama
from tests.forked import call

pytestmark = pytest.mark.engine


TREE = ["--speckv", "--speculative-eagle-topk", "4"]
SHAPE = ["--speculative-num-steps", "3", "--speculative-num-draft-tokens", "8"]
NOTHING = ["--speculative-num-steps", "0", "--speculative-num-draft-tokens", "1"]


@pytest.fixture(scope="module")
def diagnosed(models: dict[str, str]) -> Callable[..., dict[str, Any]]:
    def run(*extra: str, algorithm: str | None = "STANDALONE", draft: str = "alike") -> Any:
        return diagnose([*flags(models, algorithm, draft), *extra])

    return run


@pytest.mark.parametrize(
    ("algorithm", "draft"),
    [("EAGLE3", "eagle3"), ("EAGLE", "eagle2"), ("NEXTN", "eagle2"), ("STANDALONE", "alike")],
)
def test_what_is_served(diagnosed: Callable[..., Any], algorithm: str, draft: str) -> None:
    report = diagnosed("--speckv", algorithm=algorithm, draft=draft)
    assert (report["adaptive"], report["problem"]) == (True, None)
    assert report["stops"] == report["widths"] == "on"


@pytest.mark.parametrize("algorithm", ["EAGLE3", "STANDALONE"])
def test_trees_that_are_served(diagnosed: Callable[..., Any], algorithm: str) -> None:
    draft = {"EAGLE3": "eagle3", "STANDALONE": "alike"}[algorithm]
    report = diagnosed(*TREE, *SHAPE, algorithm=algorithm, draft=draft)
    assert (report["adaptive"], report["problem"]) == (True, None)
    assert report["candidate_shapes"] == ["0", "1x2", "2x4", "3x4", "3x8"]
    assert report["launch_steps"] == 3 and "trees" in report["stops"]
    named = diagnosed(*TREE, "--speckv-policy", "static:5x16", algorithm=algorithm, draft=draft)
    assert named["candidate_shapes"] == ["0", "1x2", "3x4", "3x8", "5x8", "5x16"]


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        (["--speckv", "--speculative-eagle-topk", "4"], "--speculative-eagle-topk 4"),
        (TREE, "needs --speculative-num-steps and --speculative-num-draft-tokens"),
        ([*TREE, *SHAPE, "--page-size", "16"], "--page-size to 1 instead of 16"),
        (["--speckv-candidate-shapes", "3x8"], "add --speculative-eagle-topk K above 1"),
        ([*TREE, *SHAPE, "--speckv-candidate-steps", "0,3"], "take --speckv-candidate-shapes"),
        ([*TREE, *SHAPE, "--speckv-candidate-shapes", "1x8"], "shape 1x8 cannot be"),
        ([*TREE, *SHAPE, "--speckv-candidate-shapes", "3"], "shape '3' is neither"),
        ([*TREE, *SHAPE, "--speckv-policy", "ema"], "policy 'ema' cannot choose among trees"),
        ([*TREE, *SHAPE, "--speckv-policy", "static:4"], "static:4' names the depth of a chain"),
        (["--speckv-policy", "static:3x8"], "policy 'static:3x8' names the shape of a tree"),
        ([*TREE, *NOTHING], "--speculative-num-steps 0 drafts no tree"),
        (
            [*TREE, *SHAPE, "--disaggregation-mode", "prefill"],
            "trees under PD disaggregation (prefill)",
        ),
        (["--speckv", "--enable-two-batch-overlap"], "two-batch overlap"),
        (["--speckv", "--pp-size", "2"], "pipeline parallelism"),
        (["--speckv", "--tp-size", "2", "--attn-dp-size", "2"], "attention DP"),
        (["--speckv", "--enable-lora"], "LoRA"),
        (["--speckv", "--enable-pdmux"], "PD multiplexing"),
        (["--speckv", "--disaggregation-mode", "decode"], "PD disaggregation"),
        (["--speckv", "--cuda-graph-backend-prefill", "full"], "full CUDA graphs for prefill"),
        (["--speckv", "--page-size", "16"], "--page-size 16"),
        (["--speckv", "--elastic-ep-backend", "mooncake", "--max-ep-size", "1"], "--max-ep-size"),
        (
            ["--speckv", "--speculative-use-rejection-sampling"],
            "STANDALONE with rejection sampling",
        ),
        (["--speckv", "--speculative-num-steps", "99"], "--speculative-num-steps 99"),
        (["--speckv", "--speculative-num-steps", "-1"], "--speculative-num-steps -1"),
    ],
)
def test_unsupported(diagnosed: Callable[..., Any], extra: list[str], names: str) -> None:
    report = diagnosed(*extra)
    assert not report["adaptive"]
    assert names in report["problem"]
    assert "\n" not in report["problem"]


@pytest.mark.parametrize(
    ("algorithm", "draft", "names"),
    [
        (None, "", "--speculative-algorithm"),
        ("NGRAM", "alike", "NGRAM"),
        ("STANDALONE", "/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_wrong_draft(
    diagnosed: Callable[..., Any], algorithm: str | None, draft: str, names: str
) -> None:
    assert names in diagnosed("--speckv", algorithm=algorithm, draft=draft)["problem"]


def test_broken_drafts(
    diagnosed: Callable[..., Any], models: dict[str, str], tmp_path: Path
) -> None:
    cut = shutil.copytree(models["alike"], tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "broken" in diagnosed("--speckv", draft=str(cut))["problem"]
    weights.unlink()
    assert "no weights" in diagnosed("--speckv", draft=str(cut))["problem"]
    (cut / "config.json").write_text("{")
    weights.write_bytes(Path(models["alike"], "model.safetensors").read_bytes())
    assert str(cut) in diagnosed("--speckv", draft=str(cut))["problem"]
    (cut / "config.json").unlink()
    assert "config.json" in diagnosed("--speckv", draft=str(cut))["problem"]


def test_foreign_vocabularies(
    diagnosed: Callable[..., Any], models: dict[str, str], tmp_path: Path
) -> None:
    larger = tiny_llama(tmp_path / "larger", vocab=384)
    assert "384 tokens" in diagnosed("--speckv", draft=str(larger))["problem"]
    renamed = shutil.copytree(models["alike"], tmp_path / "renamed")
    tokenizer = json.loads((renamed / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (renamed / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "target's tokenizer" in diagnosed("--speckv", draft=str(renamed))["problem"]


def test_rejection_sampling_needs_the_whole_vocabulary(diagnosed: Callable[..., Any]) -> None:
    asked = ["--speckv", "--speculative-use-rejection-sampling"]
    problem = diagnosed(*asked, algorithm="EAGLE3", draft="eagle3")["problem"]
    assert "drafts from 256 of 320 tokens" in problem
    assert diagnosed(*asked, algorithm="EAGLE", draft="eagle2")["problem"] is None


def test_num_steps_joins_the_candidates(diagnosed: Callable[..., Any]) -> None:
    report = diagnosed("--speckv", "--speculative-num-steps", "4")
    assert report["launch_steps"] == 4
    assert 4 in report["candidate_steps"]


def test_not_asked_for_is_not_adaptive(diagnosed: Callable[..., Any]) -> None:
    report = diagnosed()
    assert not report["adaptive"]
    assert "--speckv" in report["problem"]


def test_another_sglang(diagnosed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "installed_version", lambda: "0.5.99")
    assert "0.5.99" in diagnosed("--speckv")["problem"]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("sglang.srt.nowhere.function", ()),
        ("sglang.srt.server_args.ServerArgs.add_cli_args", ("parser", "more")),
    ],
)
def test_a_seam_that_moved(path: str, parameters: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=path):
        compat.check_signatures([compat.HookTarget(path, parameters)])


def test_a_hook_that_did_not_apply() -> None:
    with pytest.raises(ConfigError, match="did not apply"):
        compat.check_applied([compat.HookTarget("sglang.srt.nowhere.function", ())])


def test_arguments_resolved_without_the_plugin(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sgl.Runtime`` resolves in a parent that loads no plugins; its child finds out."""
    prepare()
    from sglang.srt.server_args import ServerArgs

    asked = {
        "model_path": models["target"],
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": models["alike"],
    }
    record = ServerArgs(**with_speckv(None, asked))
    with monkeypatch.context() as parent:
        parent.setattr(arguments, "requested", lambda _: None)
        parent.setattr(arguments, "is_active", lambda _: False)
        record.resolve_once()
    with pytest.raises(ConfigError, match=r"sglang_speckv\.Runtime"):
        record.check_server_args()


def test_in_python_it_is_a_value_error(models: dict[str, str]) -> None:
    asked = {"model_path": models["target"], "speculative_algorithm": "STANDALONE"}
    with pytest.raises(ValueError, match="'magic'"):
        Engine(speckv={"policy": "magic"}, speculative_draft_model_path=models["alike"], **asked)


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        (["--speckv", "true"], "--speckv true"),
        (["--speckv-policy", "magic"], "'magic'"),
        (["--speckv-candidate-steps", "1,x"], "'1,x'"),
        (["--speckv-candidate-steps", "1,99"], "99"),
        (["--speckv-policy", "static:4", "--speckv-candidate-steps", "1,3"], "static:4"),
        (["--speckv", "nowhere"], "'nowhere'"),
        (["--speckv", "--speculative-adaptive-config", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_the_command_says_one_sentence_and_exits_with_2(
    models: dict[str, str], tmp_path: Path, extra: list[str], names: str
) -> None:
    asked = [*flags(models, "STANDALONE", "alike"), *extra]
    code, output = call("sglang_speckv", tmp_path / "log", "serve", *asked)
    assert code == 2
    sentence = output.strip().splitlines()[-1]
    assert sentence.startswith("speckv: ")
    assert names in sentence
    assert "Traceback" not in output


def test_a_missing_target(tmp_path: Path) -> None:
    code, output = call(
        "sglang_speckv", tmp_path / "log", "serve", "--model-path", "/no/such/target"
    )
    assert code == 2
    assert "/no/such/target" in output.strip().splitlines()[-1]


def test_a_port_in_use(models: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, output = call(
            "sglang_speckv", tmp_path / "log", "serve", *flags(models), "--port", port
        )
    assert code == 2
    assert port in output.strip().splitlines()[-1]


def test_the_command_itself(models: dict[str, str]) -> None:
    """Started as a user starts it: the sentence goes to stderr."""
    command = [sys.executable, "-m", "sglang_speckv", "serve", *flags(models)]
    done = subprocess.run(
        [*command, "--speckv-policy", "magic"], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("speckv: ") and done.stderr.count("\n") == 1


def test_doctors_exit_code(models: dict[str, str], tmp_path: Path) -> None:
    asked = [*flags(models, "STANDALONE", "/no/where/else"), "--speckv"]
    code, output = call("sglang_speckv", tmp_path / "log", "doctor", "--json", *asked)
    assert code == 1
    report = json.loads(output.splitlines()[-1])
    assert report["adaptive"] is False
    assert "/no/where/else" in report["problem"]
