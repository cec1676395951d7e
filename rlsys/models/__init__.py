"""Model families: prompts, chat templates, mRoPE positions, checkpoint folders and sizes.

- `prompts` (`PromptBuilder`, `PromptContractError`, `PromptTooLong`, `TokenCount`, `check_contract`): prompt items ->
  token ids, and the check that the engine sees the same
- `chat` (`ChatTokenizer`): tokenizer and chat template
- `mrope` (`VisionTokens`, `mrope_positions`): positions of text and vision tokens
- `stamps` (`STAMP_RATE`, `frame_numbers`): times of frames as the engine and the prompt's text have them
- `families`: what distinguishes the supported model families, a file each
- `folder` (`companions`, `content_digest`, `model_digest`, `problems_of_folder`, `tensor_shapes`): a checkpoint folder
- `model_config` (`ModelConfig`, `ModelFolderError`, `patch_shape`, `read_model_config`): the `config.json` of a
  checkpoint folder
- `adapter` (`Adapter`, `read_adapter`): a LoRA adapter's folder
- `sizes` (`OF_MLPS`, `ModelSizes`, `read_model_sizes`): parameters by part
- `parallel` (`tensor_parallel_problem`): the numbers of workers that can share a model
- `tiny` (`END_OF_TEXT`, `IM_END`, `SPECIAL_TOKENS`, `chat_template`, `make_tiny`): a model of 0.7 million parameters,
  of any family
"""
