"""Makes videos from prompts.

    python inference/t2v.py --prompt "a red 7 moves up and to the left" [--output clip.mp4]

The same as `latentvid t2v`: --help says the options.
"""

from latentvid.programs.t2v import main

if __name__ == "__main__":
    main()
