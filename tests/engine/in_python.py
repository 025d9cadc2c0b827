"""A user's script: ``sglang_speckv.Engine`` or ``Runtime`` answers prompts, and shows its state.

    python in_python.py FOLDER Engine|Runtime SPECKV ARGUMENTS PROMPTS TOKENS

It runs in FOLDER; the last four are JSON, and so is the last line that it prints.
"""

import json
import os
import sys
import time

import requests

from sglang_speckv import Engine, Runtime
from sglang_speckv.srt.trace import FLUSH_SECONDS


def main() -> None:
    folder, kind, *asked = sys.argv[1:]
    speckv, arguments, prompts, tokens = map(json.loads, asked)
    os.chdir(folder)
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    running = {"Engine": Engine, "Runtime": Runtime}[kind](speckv=speckv, **arguments)
    try:
        if kind == "Engine":
            answers, info = ask_engine(running, prompts, sampling)
        else:
            answers = json.loads(running.generate(prompts, sampling_params=sampling))
            info = requests.get(running.url + "/server_info").json()
        found = {
            "tokens": [answer["output_ids"] for answer in answers],
            "state": info["internal_states"][0],
        }
        time.sleep(2 * FLUSH_SECONDS)  # its processes are killed at the end
        print(json.dumps(found))
    finally:
        running.shutdown()


def ask_engine(engine, prompts, sampling):
    """An empty prompt first, which the engine survives."""
    try:
        engine.generate("", sampling)
        raise SystemExit("an empty prompt was answered")
    except ValueError as error:
        assert "prompt is empty" in str(error)
    return engine.generate(prompts, sampling), engine.get_server_info()


if __name__ == "__main__":
    main()
