"""Runs pytest again and again in forks of one process that has torch loaded (bench/proof/mutants.py).

Reads lines of JSON, {"tree", "words", "limit"}, and answers each with {"status", "text"}; a run that takes
longer than `limit` seconds has the status "slow". Run as a file, so that nothing of the checkout is imported:
the tests import raymarch from their own tree.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time

import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import torch
import torch._dynamo

with contextlib.suppress(ImportError):
    import scipy.spatial.transform  # noqa: F401


def serve(tree: str, words: list[str], output: int) -> None:
    """In the fork: never returns."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    sys.path.insert(0, tree)
    code = pytest.main(words)
    sys.stdout.flush()
    os._exit(int(code))


def run(tree: str, words: list[str], limit: float) -> dict[str, object]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            serve(tree, words, output.fileno())
        ends, slow, status = time.monotonic() + limit, False, 0
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > ends and not slow:
                slow = True
                os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return {"status": "slow" if slow else os.waitstatus_to_exitcode(status), "text": text[-4000:]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
