"""`python -m robustsnn`."""

import os
import sys


def leave_the_working_folder() -> None:
    """Take the working folder off the import path, where `python -m` has put it.

    It may hold what a stranger sent, and a `torch.py` there would be imported. The folder stays if
    RobustSNN itself lies there. Nothing is imported here that is not loaded already.
    """
    here = os.path.realpath(os.curdir)
    first = os.path.realpath(sys.path[0] or os.curdir) if sys.path else ""
    own = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    if not sys.flags.safe_path and first == here != own:
        del sys.path[0]


if __name__ == "__main__":
    leave_the_working_folder()
    from robustsnn.cli.main import main

    main()
