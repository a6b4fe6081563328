"""What folds and the search for wrong labels say, in Simplified Chinese."""

from __future__ import annotations

ZH: dict[str, str] = {
    # the verb
    "rank the labels that are probably wrong, from out-of-fold predictions": "根据折外预测，按可疑程度列出可能有误的标签",
    # kiln train --folds
    "split      fold {fold} of {folds} is held out: {reached}": "划分       留出第 {fold} 折（共 {folds} 折）：{reached}",
    "fold   {fold} of {folds}": "第 {fold} 折，共 {folds} 折",
    "fold   {fold} of {folds} is done": "第 {fold} 折（共 {folds} 折）已完成",
    "fold   {fold} of {folds} goes on": "第 {fold} 折（共 {folds} 折）从中断处继续",
    "note   {what}: each model is chosen on its own fold, so numbers out of fold are slightly too good": "提示   {what}：每个模型都按自己留出的那一折挑选，折外数字因此略偏乐观",
    "over {folds} folds: {metric} {mean} on average, {lowest} to {highest}, standard deviation {std}": "{folds} 折的 {metric}：平均 {mean}，最低 {lowest}，最高 {highest}，标准差 {std}",
    "{points} points": "{points} 个百分点",
    "out of fold, each image by the model that did not train on it: {metrics}": "折外结果（每张图像由没有用它训练的模型判断）：{metrics}",
    "test, by the mean of the models' probabilities: {metrics}": "测试集结果（各模型概率取平均）：{metrics}",
    # kiln labels
    "given {given!r}, out of fold {shares}: {suggestion!r}?": "标签为 {given!r}，折外预测 {shares}：应为 {suggestion!r}？",
    "given {given!r}, held out {shares}: {suggestion!r}?": "标签为 {given!r}，留出预测 {shares}：应为 {suggestion!r}？",
    "of {total} labels about {count} are wrong, as the confident joint estimates": "{total} 个标签中约有 {count} 个有误（由置信联合分布估计）",
    "only the {total} samples that the run held out were judged; kiln train DATA --folds 5 judges all": "只检查了该次运行留出的 {total} 个样本；kiln train DATA --folds 5 可以检查全部样本",
    "the models agree with the labels given for {right} of the images": "模型的判断与所给标签在 {right} 的图像上一致",
    "these models are right for {right} of the images; they cannot judge labels: train longer or from pretrained weights": "这些模型只判对了 {right} 的图像，不能用来判断标签：请延长训练，或从预训练权重开始",
    "found  suspicious labels: {count} of {total}{first}": "结果   可疑标签：{total} 个中有 {count} 个{first}",
    "found  labels that weak models doubt: {count} of {total}{first}": "结果   较弱的模型所怀疑的标签：{total} 个中有 {count} 个{first}",
    ", the first {shown} listed": "，列出前 {shown} 个",
    "note   {note}": "提示   {note}",
    "next   kiln labels RUN --output OUT writes the pictures and the table of decisions": "下一步 kiln labels RUN --output OUT 写出图像页面和决定表",
}
