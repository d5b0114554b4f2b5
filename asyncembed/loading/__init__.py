"""From a model's name to what a worker needs (`load`): its files (`locate`), and the graphs made of them."""
