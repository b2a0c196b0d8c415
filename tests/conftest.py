"""What all Python tests rely on, however they were started."""

import signal

# A job that a script starts in the background is told to ignore SIGINT, and so are its children: no interrupt would
# ever arrive in the tests that send one. A handler of Python's own is not inherited: children get the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
