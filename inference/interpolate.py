"""Fills in frames: between two pictures, or between all frames of a clip.

    python inference/interpolate.py --first a.png --last b.png --between 12 [--prompt TEXT] [--output clip.mp4]

The same as `latentvid interpolate`: --help says the options.
"""

from latentvid.programs.interpolate import main

if __name__ == "__main__":
    main()
