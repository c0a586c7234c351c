"""HoSNN, TMLR 2025: neurons that adapt their threshold, attacked where spikes flip."""
