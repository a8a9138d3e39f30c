"""Prepare the dataset of a run. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/prepare.py configs/smoke/youtube8m.yaml
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "prepare")
    main()
