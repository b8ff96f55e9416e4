"""Engines that run a model in this process: where their calls are opened and measured."""
