"""How right a checkpoint is: measures, comparisons, pictures and the page of them."""
