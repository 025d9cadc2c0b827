"""``sglang_speckv.Engine`` and ``Runtime``, and stock classes with the JSON key.

The engine is also where NEXTN is served: SGLang's other name for EAGLE, with the same head.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from sglang_speckv import Engine
from sglang_speckv.offline.records import read_trace
from tests.engine.conftest import PROMPTS

pytestmark = pytest.mark.engine

SCRIPT = """
import json, sys
from sglang_speckv import Engine, Runtime

def main():
    kind = sys.argv[1]
    speckv, arguments, prompts = (json.loads(text) for text in sys.argv[2:])
    running = {"Engine": Engine, "Runtime": Runtime}[kind](speckv=speckv, **arguments)
    try:
        sampling = {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True}
        if kind == "Engine":
            try:
                running.generate("", sampling)
                raise SystemExit("an empty prompt was answered")
            except ValueError as error:
                assert "prompt is empty" in str(error)
            answers = running.generate(prompts, sampling)
            state = running.get_server_info()["internal_states"][0]
        else:
            import requests
            answers = json.loads(running.generate(prompts, sampling_params=sampling))
            state = requests.get(running.url + "/server_info").json()["internal_states"][0]
        tokens = [answer["output_ids"] for answer in answers]
        print(json.dumps({"tokens": tokens, "state": state}))
    finally:
        running.shutdown()

if __name__ == "__main__":
    main()
"""


def run(kind: str, speckv: dict[str, Any], arguments: dict[str, Any], tmp_path: Any) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), kind, *map(json.dumps, (speckv, arguments, PROMPTS))],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def arguments(models: dict[str, str], algorithm: str, draft: str) -> dict[str, Any]:
    return {
        "model_path": models["target"],
        "speculative_algorithm": algorithm,
        "speculative_draft_model_path": models[draft],
        "max_total_tokens": 4096,
    }


@pytest.mark.parametrize(
    ("kind", "algorithm", "draft"),
    [("Engine", "NEXTN", "eagle2"), ("Runtime", "STANDALONE", "alike")],
)
def test_serves_losslessly(
    kind: str,
    algorithm: str,
    draft: str,
    models: dict[str, str],
    plain_answers: dict[str, Any],
    tmp_path: Any,
) -> None:
    asked = arguments(models, algorithm, draft)
    settings = {"candidate_steps": [0, 2], "policy": "static:2", "trace": "new/trace"}
    shown = run(kind, settings, asked, tmp_path)
    speckv = shown["state"]["speckv"]
    assert shown["tokens"] == plain_answers["batch"]
    assert speckv["candidate_steps"] == [0, 2]
    assert speckv["rounds"]["2"] > 0
    assert 0 < speckv["correct_drafts"] < speckv["proposed_drafts"]
    (trace,) = (tmp_path / "new" / "trace").iterdir()
    _, records = read_trace(trace)
    assert {record.num_steps for record in records} == {2}


def test_refuses_in_python_with_a_value_error(models: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="'magic'"):
        Engine(speckv={"policy": "magic"}, **arguments(models, "STANDALONE", "alike"))
