"""Methods that medcoarse is compared with, on the same networks, data and number of steps. One method is one file."""
