"""Makes a video that begins with a picture.

    python inference/i2v.py --image picture.png --prompt "a red 7 moves up" [--output clip.mp4]

The same as `latentvid i2v`: --help says the options.
"""

from latentvid.programs.i2v import main

if __name__ == "__main__":
    main()
