"""What a run takes before it is begun: parameters, memory, layout, time, cost; what cannot fit is refused."""
