"""What the process does that loses an interrupt; alone in this file, as the process loads all that is in it."""

import signal
import time
from pathlib import Path


def loses_the_first_interrupt(begun, place):
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Freed:
        def __del__(self):
            begun.set()
            time.sleep(60)  # Python drops what is raised here

    try:
        Freed()
        Path(place).write_text("went on")
        time.sleep(60)
    except KeyboardInterrupt:
        Path(place).write_text(Path(place).read_text() + ", then ended")
