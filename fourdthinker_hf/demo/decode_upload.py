"""Decodes one uploaded video within limits of memory and time. A program: `uploads.py` starts it with `python -I`.

So it sees the standard library, the installed packages, and the file that opens videos, and nothing else. Its argument
is a JSON object; it leaves frames.npy and timestamps.npy in the folder `out`, or ends with `VideoError: reason`.
"""

import json
import sys

job = json.loads(sys.argv[1])
try:
    import resource

    for limit, most in ((resource.RLIMIT_AS, job["bytes"]), (resource.RLIMIT_CPU, 2 * job["seconds"])):
        resource.setrlimit(limit, (most, most))
except ImportError:  # not on Windows
    pass
sys.path.insert(0, job["folder"])

import numpy as np  # noqa: E402  (within the limits)
from video_fourdthinker import VideoError, load_video, video_size  # noqa: E402

try:
    seconds, width, height = video_size(job["path"])
    if seconds > job["max_seconds"]:
        raise VideoError(
            f"lasts {seconds:.0f} s, more than the {job['max_seconds']} s that are taken here: cut it, "
            "for example with `ffmpeg -i IN -ss FROM -to UNTIL OUT.mp4`"
        )
    if max(width, height) > job["max_side"]:
        raise VideoError(
            f"is {width} x {height} pixels, more than the {job['max_side']} a side that are taken here: "
            "make it smaller, for example with `ffmpeg -i IN -vf scale=-2:720 OUT.mp4`"
        )
    frames, timestamps = load_video(job["path"], **job["sampling"])
except VideoError as error:
    sys.exit(f"VideoError: {error}")
except MemoryError:
    sys.exit("VideoError: its frames do not fit into the memory that a video gets here: make it smaller, or trim it")
np.save(job["out"] + "/frames.npy", frames)
np.save(job["out"] + "/timestamps.npy", timestamps)
