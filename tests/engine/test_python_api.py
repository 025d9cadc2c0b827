"""``sglang_speckv.Engine`` and ``Runtime``, and stock classes with the JSON key."""

import json
import subprocess
import sys
from typing import Any

import pytest

from sglang_speckv import Engine

pytestmark = pytest.mark.engine

SCRIPT = """
import json, sys
from sglang_speckv import Engine, Runtime

def main():
    kind, speckv, arguments = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    running = {"Engine": Engine, "Runtime": Runtime}[kind](speckv=speckv, **arguments)
    try:
        sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
        if kind == "Engine":
            answer = running.generate("hello", sampling)
            state = running.get_server_info()["internal_states"][0]
        else:
            import requests
            answer = json.loads(running.generate("hello", sampling_params=sampling))
            state = requests.get(running.url + "/server_info").json()["internal_states"][0]
        print(json.dumps({"answer": answer["text"], "speckv": state["speckv"]}))
    finally:
        running.shutdown()

if __name__ == "__main__":
    main()
"""


def run(kind: str, speckv: dict[str, Any], arguments: dict[str, Any], tmp_path: Any) -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), kind, json.dumps(speckv), json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip(), done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def arguments(models: dict[str, str]) -> dict[str, Any]:
    return {
        "model_path": models["target"],
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": models["alike"],
        "max_total_tokens": 4096,
    }


@pytest.mark.parametrize("kind", ["Engine", "Runtime"])
def test_serves(kind: str, arguments: dict[str, Any], tmp_path: Any) -> None:
    shown = run(kind, {"candidate_steps": [0, 2]}, arguments, tmp_path)
    assert shown["speckv"]["candidate_steps"] == [0, 2]
    assert sum(shown["speckv"]["rounds"].values()) > 0
    assert shown["answer"]


def test_refuses_in_python_with_a_value_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'magic'"):
        Engine(speckv={"policy": "magic"}, **arguments)
