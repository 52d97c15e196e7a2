"""What scoring does where nothing is said; without torch, so that options are read at once."""

PICTURES = 4  # of a clip that Inception sees: neighbouring frames say the same again
COMMON = ("rate", "size", "length", "count", "levels", "repeats")  # what two sets must share: guards.py
SHOWN = 6  # clips of each end on the page of best and worst ones
RESIZINGS = ("torchmetrics", "tensorflow", "clean")  # of pictures for Inception: sets/resizing.py
RESAMPLES = 200  # for the intervals
SCORE_NAMES = (
    *("fid", "kid", "is", "fvd", "kvd", "is_video", "cd_fvd", "jedi"),
    *("psnr", "ssim", "lpips", "clip_text", "clip_frames"),
    *("flicker", "warping_error", "motion", "dynamic_degree"),
)
