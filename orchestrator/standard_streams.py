"""Standard output and standard error that bear with what is behind them: a reader that is gone, a closed terminal, a
console of ASCII."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO


def bear_with_readers() -> None:
    """Have this process print on where nobody reads any more, and print `?` for characters that the console lacks.

    A sweep is worth more than its lines: behind `| head`, or where `tee` got the Ctrl-C first, it goes on quietly, as
    everything else that would write to the pipe then does, too.
    """
    sys.stdout = _patient(sys.stdout, 1)
    sys.stderr = _patient(sys.stderr, 2)


class _Pipe(io.FileIO):
    """A file descriptor that becomes `/dev/null` when its reader or its terminal is gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # no reader, or a terminal that was closed
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _patient(stream: TextIO | None, descriptor: int) -> Any:
    """The stream itself where it is not that of the descriptor: closed, or replaced by who embeds this program."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        if stream.fileno() != descriptor:
            return stream
        stream.flush()
    except (OSError, ValueError):
        return stream
    errors = stream.errors if stream.errors == "backslashreplace" else "replace"
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(descriptor, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
