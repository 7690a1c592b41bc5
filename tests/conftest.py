"""What all tests share: a Ctrl-C that works, also when the tests run in a shell's background."""

import signal

# A shell starts background jobs with SIGINT ignored, and children inherit that: commands that the
# tests interrupt would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
