r"""Prepare the dataset of a run. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/prepare.py configs/youtube8m/moe_8.yaml \
    --set dataset.path=s3://bucket/youtube8m --set prepare.out=s3://bucket/prepared --set out=s3://bucket/runs
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "prepare")
    main()
