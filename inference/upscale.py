"""Makes a clip larger, or gives it more frames, with a model that was trained to (docs/cascades.md).

    python inference/upscale.py --model PIPELINE --clip any.mp4 [--by 2] [--prompt TEXT] [--output large.mp4]

The same as `latentvid upscale`: --help says the options.
"""

from latentvid.programs.upscale import main

if __name__ == "__main__":
    main()
