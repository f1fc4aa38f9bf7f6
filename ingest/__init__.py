"""From a catalogue manifest to checked media, vectors and offline tables; from interactions to users' features."""
