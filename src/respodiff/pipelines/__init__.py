"""What is steered: all that is known of diffusers pipelines, their denoiser, bottleneck and latents."""
