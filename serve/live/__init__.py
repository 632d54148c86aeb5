"""Music that is played live over WebSockets: sessions, and the two languages in which clients steer them."""
