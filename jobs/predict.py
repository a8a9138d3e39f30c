"""Predict a split with a trained run. As a Ray job, from the root of the project:

ray job submit --working-dir . -- python jobs/predict.py s3://bucket/runs/quickstart-moe --split test
"""

import sys

from mmray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "predict")
    main()
