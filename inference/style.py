"""Shows a video or picture in the look of a picture.

    python inference/style.py --clip clip.mp4 --style painting.png [--prompt "a street"] [--output new.mp4]

The same as `latentvid style`: --help says the options.
"""

from latentvid.programs.style import main

if __name__ == "__main__":
    main()
