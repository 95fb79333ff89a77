"""How the scripts end when their reader or their user has had enough: without a traceback."""

import contextlib
import os
import sys


@contextlib.contextmanager
def quiet_end():
    """End the program with the exit status of a shell at Ctrl-C, 130, and where nothing reads its output on, 141.

    A character that the output can't have, as the ± of an ASCII terminal, becomes a question mark.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            print(end="", flush=True)  # what is left fails here, and not in the interpreter's end
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it fails again
        sys.exit(141)
