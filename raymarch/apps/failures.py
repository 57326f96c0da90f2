"""What goes wrong through a user's input or machine, in one sentence; anything else keeps its traceback."""

from __future__ import annotations

import errno

REMEDIES = {
    errno.ENOSPC: "free some space or name another place; what was saved before is intact",
    errno.EDQUOT: "free some of the quota or name another place; what was saved before is intact",
    errno.EACCES: "allow reading and writing there, or name another place",
    errno.EPERM: "allow reading and writing there, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOTDIR: "a part of this path is a file; name another place",
    errno.EEXIST: "there is a file where a folder should be; name another place",
    errno.EISDIR: "a folder is there where a file is expected; name another place",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
}


class UserStop(RuntimeError):
    """Ctrl-C."""

    status = 130


def sentence(error: BaseException) -> str | None:
    """What to tell the user, on one line; None for what is a fault of ours."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return _of_system(error)
    if isinstance(error, tuple(_ours())):
        return " ".join(str(error).split("\n"))
    if _ran_out(error):
        return (
            "out of memory: lower train.trainer.rays or --side, downscale the photos, or use a smaller "
            "preset; checkpoints saved so far are intact"
        )
    return None


def _of_system(error: OSError) -> str:
    """An error of the operating system: the file, what is wrong with it, what to do."""
    places = [str(name) for name in (error.filename, error.filename2) if name]
    where = f"{places[-1]}: " if places else ""
    remedy = REMEDIES.get(error.errno or 0, "name another place, or try again")
    said = str(error.strerror)
    return f"{where}{said[:1].lower()}{said[1:]}: {remedy}"


def _ran_out(error: BaseException) -> bool:
    from raymarch.model.frames import ran_out

    return ran_out(error)


def _ours() -> list[type[Exception]]:
    from raymarch.apps.training import PageError
    from raymarch.config import ConfigError
    from raymarch.data.scene import SceneError
    from raymarch.features.encoder import EncoderError
    from raymarch.features.words import WordsError
    from raymarch.nn import TcnnError
    from raymarch.train.checkpoint import CheckpointError
    from raymarch.train.evaluate import OutOfMemory
    from raymarch.train.photos import LocalizeError
    from raymarch.train.runs import DeviceError
    from raymarch.train.trainer import TrainingError

    return [
        *(ConfigError, SceneError, CheckpointError, DeviceError, EncoderError, TrainingError),
        *(OutOfMemory, UserStop, PageError, LocalizeError, WordsError, TcnnError),
    ]
