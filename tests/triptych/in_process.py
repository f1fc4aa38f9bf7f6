"""The `triptych` command in the tests' own process, which has imported already what a new one needs seconds for."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from unittest import mock

from triptych.cli import main


@dataclass(frozen=True)
class Done:
    """What a command answered."""

    returncode: int
    stdout: str
    stderr: str


def triptych(home, *arguments, **variables) -> Done:
    """Run a command to its end on a root folder, with further environment variables."""
    environment = {"TRIPTYCH_HOME": str(home), "NO_COLOR": "1", **variables}
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["triptych", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
