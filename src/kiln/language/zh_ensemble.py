"""What the verbs `ensemble` and `soup` say, in Simplified Chinese."""

from __future__ import annotations

ZH: dict[str, str] = {
    "let several models answer together, weighted on validation": "让多个模型一起作答，权重在验证集上确定",
    "average the weights of several models into one": "把多个模型的权重平均成一个模型",
    "member": "成员",
    "weight": "权重",
    "taken": "采用",
    "tried  {metric} on val: {tried}": "尝试   验证集 {metric}：{tried}",
    "kept   {name}": "采用   {name}",
    "gain   {value:+.1f} points ({low:+.1f} to {high:+.1f}) over {model} on {n:,} test images": "提升   相对 {model} 为 {value:+.1f} 个百分点（{low:+.1f} 至 {high:+.1f}），共 {n:,} 张测试图像",
    "       no difference shown": "       未显示出差异",
    "model  {path}": "模型   {path}",
    "no validation samples that all models held out: all weigh alike, and nothing is fitted": "没有所有模型都未训练过的验证样本：各成员权重相同，不做任何拟合",
    "no validation samples that all models held out: the soup was not compared with its members": "没有所有模型都未训练过的验证样本：平均后的模型未与其成员比较",
    "no test samples that all models held out: nothing is claimed of a gain": "没有所有模型都未训练过的测试样本：不对提升下任何结论",
    "{file} cannot be linked from there, and was copied": "{file} 无法在那里建立链接，已改为复制",
    "the ensemble was not tried on images: {why}": "未能在图像上试运行该集成：{why}",
    "on validation this soup is below its best member; --method greedy never is": "在验证集上，这个平均模型不如其最好的成员；--method greedy 绝不会如此",
    "no average was taken: none was as good as {model} alone, which is what was written": "没有采用任何平均：都不如单独的 {model}，因此写出的就是它",
    "the data have no training samples": "数据中没有训练样本",
    "running statistics were averaged, not measured again: {why}": "归一化的滑动统计量取了平均，没有重新测量：{why}",
}
