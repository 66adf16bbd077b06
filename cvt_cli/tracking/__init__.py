"""What a run tells other tools while it trains, and how much energy it takes."""
