"""The network on torch: training form, inference form, weights, devices."""
