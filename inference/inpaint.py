"""Paints a part of a video or picture anew; all else stays as it is.

    python inference/inpaint.py --clip clip.mp4 --mask mask.png --prompt "a blue 3 moves up" [--output new.mp4]

The same as `latentvid inpaint`: --help says the options.
"""

from latentvid.programs.inpaint import main

if __name__ == "__main__":
    main()
