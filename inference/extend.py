"""Goes on with a video: any number of seconds more, in memory that does not grow with them.

    python inference/extend.py --clip clip.mp4 --prompt "a red 7 bounces up and down" --seconds 10 [--output long.mp4]

The same as `latentvid extend`: --help says the options.
"""

from latentvid.programs.extend import main

if __name__ == "__main__":
    main()
