# Level 5. The supervisor's view on the breakers in the segment.
