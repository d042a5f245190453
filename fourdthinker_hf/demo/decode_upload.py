"""Decodes one uploaded video within limits on memory and time. `uploads.py` runs this program with `python -I`.

It imports only the standard library, installed packages and `video_fourdthinker.py`. Its argument is a JSON object. It
writes frames.npy, timestamps.npy and known.npy (what else `Timestamps` knows) into the folder `out`, or ends with
`VideoError: reason` on stderr.
"""

import json
import sys

job = json.loads(sys.argv[1])
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
np.save(job["out"] + "/frames.npy", frames)
np.save(job["out"] + "/timestamps.npy", timestamps)
np.save(job["out"] + "/known.npy", np.float64([timestamps.seconds_per_frame or np.nan, timestamps.end]))
