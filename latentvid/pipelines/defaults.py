"""What sampling does where nothing is said; without torch, so that options are read at once."""

ENDINGS = (".mp4", ".webm", ".gif", ".png")
STREAMED = (".mp4", ".webm")  # that are written while they are made, and hold audio
SOLVERS = ("euler", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde", "cogvideox_dpm", "unipc")
SOLVER = "euler"
CONDITIONS = ("levels", "channels", "replacement", "reconstruction")
RECONSTRUCTION_WEIGHT = 2.0
TOKENS_PER_PACK = 16384
# noise levels; the best of a few on the demo's digits (docs/tasks.md, docs/editing.md)
STRENGTH = {"inversion": 0.95, "sdedit": 0.7, "tokenflow": 0.95}
METHODS = (*STRENGTH, "flow")
GUIDED_BELOW = 0.7  # above, the noise that was found decides where things are: guidance would move them
# FlowEdit's parameters, in the paper's names; n_max as a share of the steps
N_MAX, N_MIN, N_AVG, FLOW_GUIDANCE = 0.8, 0, 1, 1.5
# of TokenFlow: a keyframe in every so many frames, frames of a window, the share of steps in which keyframes attend as
# the source's, and to how many on each side (VideoDiT)
KEYFRAME_EVERY, KEYFRAME_WINDOW, SOURCE_ATTENTION, REACH = 8, 64, 0.0, 1
OUTSIDE = ("clip", "reconstruction")  # what is shown where a mask lets nothing change
# of style transfer: the noise level to which clips are inverted, and the scale of the picture's keys
STYLE_STRENGTH, STYLE_SCALE = 0.8, 1.0
