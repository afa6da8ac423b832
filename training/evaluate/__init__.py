"""How results are measured: conventions, physics, observers, hallucination, robustness. numpy and scipy only."""
