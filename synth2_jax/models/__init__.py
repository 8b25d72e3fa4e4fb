"""Models: each takes one frozen dataclass config and knows neither data, losses nor samplers."""
