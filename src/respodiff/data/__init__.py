"""What travels between making and measuring: prompts, image records, run folders, prompt sets, target proportions."""
