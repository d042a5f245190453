"""Decodes one uploaded video within limits on memory and time. `uploads.py` runs this program with `python -I`.

It imports only the standard library, installed packages and `video_fourdthinker.py`. Its argument is a JSON object. It
writes three arrays to stdout, which is a file, as `numpy.save` does: the frames, their times, and what else
`Timestamps` knows. Or it ends with `VideoError: reason` on stderr. It ends when the server that started it ends.
"""

import json
import os
import sys
import threading
import time

job = json.loads(sys.argv[1])


def end_with_server() -> None:
    while os.getppid() == job["server"]:  # on Windows this never changes
        time.sleep(0.5)
    os._exit(1)


threading.Thread(target=end_with_server, daemon=True).start()
try:
    import resource

    for limit, value in ((resource.RLIMIT_AS, job["memory_bytes"]), (resource.RLIMIT_CPU, 2 * job["seconds"])):
        resource.setrlimit(limit, (value, value))
except ImportError:  # Windows has no such limits
    pass
sys.path.insert(0, job["code_folder"])

import numpy as np  # noqa: E402  (within the limits)
from video_fourdthinker import VideoError, load_video, video_size  # noqa: E402

try:
    seconds, width, height = video_size(job["path"])
    if seconds > job["max_seconds"]:
        raise VideoError(
            f"lasts {seconds:.0f} s, more than the {job['max_seconds']} s that are accepted: cut it, "
            "for example with `ffmpeg -i IN -ss FROM -to UNTIL OUT.mp4`"
        )
    if max(width, height) > job["max_side"]:
        raise VideoError(
            f"is {width} x {height} pixels, more than the {job['max_side']} a side that are accepted: "
            "make it smaller, for example with `ffmpeg -i IN -vf scale=-2:720 OUT.mp4`"
        )
    frames, timestamps = load_video(job["path"], **job["sampling"])
except VideoError as error:
    sys.exit(f"VideoError: {error}")
except MemoryError:
    sys.exit("VideoError: its frames do not fit into the memory that a video gets here: make it smaller, or trim it")
for array in (frames, timestamps, np.float64([timestamps.seconds_per_frame or np.nan, timestamps.end])):
    np.save(sys.stdout.buffer, array)
