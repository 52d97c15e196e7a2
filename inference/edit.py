"""Changes what a video or picture shows, from what a prompt says of it to what another says.

    python inference/edit.py --clip clip.mp4 --source "a red 7 moves up" --prompt "a red 3 moves up" [--output new.mp4]

The same as `latentvid edit`: --help says the options.
"""

from latentvid.programs.edit import main

if __name__ == "__main__":
    main()
