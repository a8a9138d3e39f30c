"""Embed the rows of a trained run's dataset. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/embed.py s3://bucket/runs/youtube8m-title-cnn --dtype float16
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "embed")
    main()
