"""Names of the formats of annotation files."""

from __future__ import annotations

from typing import Literal

Format = Literal[
    "charades_sta",
    "activitynet",
    "timelens",
    "nextgqa",
    "got10k",
    "vidtab",
    "captions",
    "vtts",
    "dream1k",
    "table",
    "video_mme",
    "video_mme_subtitles",
    "mvbench",
    "perception_test",
    "vsi_bench",
    "r4d_bench",
    "timebench",
]
"""How an annotation file is written; see docs/data_sets.md. It determines the task, or its rows do."""
