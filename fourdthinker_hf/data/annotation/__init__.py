"""Makes training records from raw videos: shots, camera motion, tracked objects, questions, reasoning."""

try:
    import cv2  # noqa: F401
except ImportError as error:
    raise ImportError('Annotating videos needs OpenCV: pip install "fourdthinker-hf[annotate]"') from error
