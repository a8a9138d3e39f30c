"""Combine trained runs. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/ensemble.py runs/moe-8 runs/moe-32 --method mean --out runs/ensemble
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "ensemble")
    main()
