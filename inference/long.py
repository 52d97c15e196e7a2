"""Makes a long video from a prompt, written as it is made.

    python inference/long.py --prompt "a red 7 bounces up and down" --seconds 60 [--order nuwa-xl] [--output long.mp4]

The same as `latentvid long`: --help says the options.
"""

from latentvid.programs.long import main

if __name__ == "__main__":
    main()
