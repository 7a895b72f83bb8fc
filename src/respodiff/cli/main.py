"""The command line: one verb a task. Flags and JSON keys are a contract with other people's scripts.

With ``--json`` the last line of stdout is one JSON object and everything else goes to stderr. Exit codes: 0 done, 1 failed (nothing lost),
2 bad arguments.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings

import typer

from respodiff.cli import app as _app  # noqa: F401  (registers its verb, as these do)
from respodiff.cli import demo, evaluate, experiments, generate, hub, models, reproduce, train  # noqa: F401
from respodiff.cli.console import app, words


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read by transformers, too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a job saves as Ctrl-C does
    warnings.showwarning = lambda message, category, *_rest, **_more: (
        words.message("warning", str(message)) if category in (UserWarning, RuntimeWarning) else None
    )
    try:
        code = app(standalone_mode=False)  # Typer returns its exit code; newer versions return 130 after Ctrl-C
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(error, 2 if isinstance(error, ValueError) else 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; what was written so far is kept (train goes on with --resume, generate and audit with the same command)", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click; a bare "respodiff" has already printed its help
            if type(error).__name__ != "NoArgsIsHelpError":
                _fail(error.format_message(), 2)
        elif os.environ.get("RESPODIFF_TRACEBACK") == "1":
            raise
        else:
            _fail(f"unexpected {type(error).__name__}: {error}; set RESPODIFF_TRACEBACK=1 to see where, and please report it", 1)


def _fail(error: object, code: int) -> None:
    words.message("error", str(error).strip() or type(error).__name__, style="red")
    sys.exit(code)


if __name__ == "__main__":
    main()
