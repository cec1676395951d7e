"""The policy model: loading, frozen parts, LoRA adapters, and pixel inputs.

- `families` (`MODULES`, `family_of`): what the learner needs of each model family's modules
- `policy` (`PackedPolicy`, `WholePass`, `load_model`, `read_layout`): a model that runs on packed rows
- `frozen` (`freeze`): parts that are not trained
- `lora` (`LowRank`, `adapters`, `adapters_off`, `add_adapters`, `write_adapter_config`): adapters, and the reference
  policy without them
- `pixels` (`PIECE_BYTES`, `PixelFormat`, `cut_patches`, `frame_grid`): frames cut into patches
"""
