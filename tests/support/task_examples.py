"""A truth and a correct response without reasoning for every task of the table."""

from __future__ import annotations

BOX = [0.1, 0.2, 0.3, 0.4]
PIXELS = {"box": [64, 96, 192, 192], "width": 640, "height": 480}
TRUTHS = {
    "temporal_grounding": [1.0, 2.0],
    "tracking": [BOX] * 8,
    "spatial_grounding": {"box": BOX},
    "spatiotemporal_grounding": {"period": [1.0, 2.0], "box": BOX},
    "multiple_choice": "(B)",
    "grounded_qa": {"answer": "(B)", "glue": [[1.0, 2.0]]},
    "spatial_qa": {"answer": "(B)", **PIXELS},
    "spatiotemporal_qa": {"answer": "(B)", "glue": [[1.0, 2.0]], "box": BOX},
    "numeric_qa": 3.5,
    "video_quality": "low quality",
    "captioning": {"caption": "A cat sleeps."},
}
RIGHT = {
    "temporal_grounding": "<answer>1.00 to 2.00</answer>",
    "tracking": f"<answer>{[BOX] * 8}</answer>",
    "spatial_grounding": f"<answer>{BOX}</answer>",
    "spatiotemporal_grounding": f"<answer>1.00 to 2.00</answer><box>{BOX}</box>",
    "multiple_choice": "<answer>B</answer>",
    "grounded_qa": "<answer>(B)</answer> <glue>[(1.00, 2.00)]</glue>",
    "spatial_qa": f"<answer>(B) two</answer>\n<box>{PIXELS['box']}</box>",
    "spatiotemporal_qa": f"<answer>(B)</answer> <glue>[(1.00, 2.00)]</glue> <box>{BOX}</box>",
    "numeric_qa": "<answer>3.5 m</answer>",
    "video_quality": "<answer> Low  Quality. </answer>",
    "captioning": "<answer>A cat sleeps.</answer>",
}
